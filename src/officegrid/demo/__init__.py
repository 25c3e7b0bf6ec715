"""`officegrid demo`: the main job on one machine, from generated data to merged output."""
