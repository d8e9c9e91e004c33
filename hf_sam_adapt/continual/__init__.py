"""Learning domain after domain: the protocols, the runs, and what they are judged by."""
