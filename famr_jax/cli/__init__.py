"""The main job: its flags, the workbench of data, model and oracles, forgetting, and its page."""
