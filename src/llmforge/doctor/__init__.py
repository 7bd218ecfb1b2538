"""What this machine has, what each plugin needs, and what is missing."""
