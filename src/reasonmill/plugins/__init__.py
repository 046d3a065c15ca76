"""Plug-ins: tasks, rewards, environments, stages and sources of data by name, whoever wrote them.

`target` finds and imports what a text such as "my_lab.gsm8k:Gsm8k" or "./mine.py:Mine" names, `arguments` checks what
it is constructed with, `plugin` puts both together, `catalogue` knows all names, and `sources` identifies the code that
decides a result.
"""
