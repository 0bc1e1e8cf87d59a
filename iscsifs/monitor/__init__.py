"""What can be seen of a mount from outside."""
