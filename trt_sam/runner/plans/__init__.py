"""What a slot does for one kind of call: its memory, its recorded launches, and the arrays that come out."""
