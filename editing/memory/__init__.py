"""Models larger than the memory: a budget, a plan, and layers streamed from disk. Can be ignored until a model does not fit.

budget        what each use needs in bytes, and the plan that streams the fewest layers
calibration   how fast this machine is, what a run within the plan will take, how many turns to prepare at once
loading       loads the weights that stay        streaming   reads the others when a pass needs them
heap          returns freed memory to the system
"""
