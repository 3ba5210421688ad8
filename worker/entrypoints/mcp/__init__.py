"""A server of the Model Context Protocol (MCP): the tools through which a language model uses Aviary.

    server.py     the tools, and the transports: stdio, or streamable HTTP on loopback
    results.py    a result → its text for the model, and its structured content
    executor.py   what runs the tools' requests
    local.py      the same on an engine in this process
    remote.py     the same on a server or a Runpod endpoint

server.py alone imports the package `mcp`, which the extra `mcp` installs.
"""
