"""The fault bench: tenants at work, faults in their midst, and a checker who knows every answer.

``python3 -m testbed.faults`` has the real programs on three hosts with a broker and a
database, lets clients of several tenants create, change and delete through the API, and
meanwhile kills, pauses, cuts, fills and skews, one fault after the other. When all is
healed, ``checker`` compares what was acknowledged with the database, the engines and
the log. Everything is chosen by a seed. The bench has a test bed of its own.
"""

import os
import pathlib

os.environ.setdefault("MAGNUM_TESTBED_DIR", str(pathlib.Path(__file__).resolve().parents[2] / ".state" / "faults"))
