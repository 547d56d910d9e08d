"""A worked example: four hosts of two kinds. Copy it with group_data/prod.py and change the names.

Every list is a group. Settings for a group stand in group_data/<group>.py, settings for one host beside its
name. All hosts of this file are in the group `prod` as well, whatever else they are in.
"""

h200 = [
    "gpu-01.example.net",
    # One host may differ: this one keeps its models on another disk.
    ("gpu-02.example.net", {"root": "/data/pyinfra-vllm"}),
]

rtx4090 = [
    "box-01.example.net",
    "box-02.example.net",
]
