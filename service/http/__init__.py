"""``oec serve``: studies over HTTP.

The service keeps its state in the home and in Ray's job API only. It may be killed at any time, and several services
may share one home.
"""
