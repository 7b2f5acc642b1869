"""What is done with a finished run: talk to it, write it in other formats, measure it on other pairs, publish it."""
