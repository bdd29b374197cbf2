"""From policies, namespaces and pods to the tables that judge a packet on this node: pure rules.

A *trait* is whatever a policy in force here can tell addresses apart by: a selector of pods, an ipBlock, what a port's
name means. A *class* is a set of traits: all addresses that have exactly these. A *subject* is a set of rules: all
local pods that admit exactly this in one direction. Neither ever changes; a changed pod or policy means another class
or subject. So a grant, which says what a subject admits for a class, never changes either, and the one write that
leads an address or a pod to its new number leads it from what was right before to what is right after.
"""
