"""The least that pyinfra does on a host: one operation that asks one fact and changes nothing."""

from pyinfra.operations import files

files.directory(name="The root is there", path="/srv/pyinfra-vllm")
