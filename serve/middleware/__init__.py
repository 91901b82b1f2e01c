"""What every request passes before its route: who asks, what they may, and within which bounds."""
