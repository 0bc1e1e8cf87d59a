"""What the program tells of itself: events and metrics, as the files of the mount show them."""
