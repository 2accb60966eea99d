"""Calls that are right as they are: a test of bad input spoils one thing of them."""

from service.ids import new_id

JSON = {"Content-Type": "application/json"}
FRANCE = {"subject": "France", "relation": "capital", "new_object": "Rome"}
EDITS = {"model": "toy", "edits": [FRANCE]}
RELATION = {"name": "mascot", "training_templates": ["The mascot of {subject} is"]}
PROBE = {"model": "toy", "probes": [{"prompt": "Water boils at", "object": "100"}]}
ALIAS = "/models/toy/aliases/mine"
CANCEL = f"/jobs/{new_id('job')}/cancel"
REVERT = f"/jobs/{new_id('job')}/revert"
