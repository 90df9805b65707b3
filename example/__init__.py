"""A small application to run and to copy from: rooms to chat in, and a live chart."""
