"""Ways to make the rows of new tokens: a file a method."""
