"""What every stage shares: cases, trials, checks, running them, and making what fails small."""
