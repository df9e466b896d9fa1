"""The callback `JointLossCallback`."""
