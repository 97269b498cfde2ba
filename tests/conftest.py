"""How hypothesis looks for counterexamples: the same way each time, so that a run that fails has found a change.

``--hypothesis-profile=search`` looks in other places each time: for whoever has changed what a property is about.
"""

from __future__ import annotations

from hypothesis import settings

# No deadlines: machines are noisy. What may not cost much is counted.
settings.register_profile("steady", deadline=None, derandomize=True)
settings.register_profile("search", deadline=None)
settings.load_profile("steady")
