"""What the columns of a row mean: who says what, told by `fields` or by the kind of the rows."""
