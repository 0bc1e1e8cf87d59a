"""What contrib/bench is made of: fio on a LUN served by iscsifs and by its peer."""
