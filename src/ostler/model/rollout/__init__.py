"""Rollouts decided purely: the plan, each host's way, what is next; whoever carries them out asks here."""
