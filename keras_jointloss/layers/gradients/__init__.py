"""The layers that combine the gradients of terms."""
