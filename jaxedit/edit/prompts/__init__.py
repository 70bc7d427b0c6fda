"""Methods that leave the weights alone and put something before the prompt, one per file."""
