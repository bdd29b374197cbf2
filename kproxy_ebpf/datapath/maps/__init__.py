"""Access to single maps in the planner's words."""
