"""Sources of targets: what tells which targets a user wants, now and later."""
