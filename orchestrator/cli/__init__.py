"""The command line, one file a command group.

main wires the commands; errors turns every failure into one line and an exit code; console and streams write, whatever
the terminal is. Commands import what they need when they run, so that help, completion and ``show`` start at once.
"""
