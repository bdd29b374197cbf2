"""Attaching programs to links: TCX or clsact, and watching which links there are."""
