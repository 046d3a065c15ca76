"""Users' own rows: files and hub data sets in the shapes that other projects write, made into problems, conversations
and labelled responses. Whatever is not understood is refused by file, line and column. No torch here.
"""
