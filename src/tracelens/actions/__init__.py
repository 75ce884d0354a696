"""What each command of `tracelens.commands` does, by kind."""
