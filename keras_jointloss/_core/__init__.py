"""What all parts stand on; nothing here knows of terms."""
