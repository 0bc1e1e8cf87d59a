"""What the program tells of itself: events, metrics and traces."""
