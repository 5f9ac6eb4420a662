"""Steps on hosts: values that say what is to be executed there, and the connections that carry them out."""
