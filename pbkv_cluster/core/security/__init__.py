"""Who calls, by API key, and how connections are encrypted.

caller                  who has made the call that runs now, and what that lets it do
key_file, keyring       the API keys of a file, and those that a process accepts; the file is read again when it changes
headers                 the API key in the headers of a call
exposure                whether others than the users of this machine need no key
tls                     certificates, as contexts for servers and for connections
"""
