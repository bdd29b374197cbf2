"""From planned Services to ordered table writes: pure bookkeeping."""
