"""What a pool gives away about the sharers whose pieces are in it."""
