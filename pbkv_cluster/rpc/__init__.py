"""Between processes: generated protobuf code, conversions to the project's values, servers, channels and links.

v1                                     generated from proto/pbkv/v1
convert, access_logs                   messages to values and back
errors                                 errors to gRPC statuses and back
security                               what a process shows to others, and asks of them
server, authentication                 one end of a connection, and who may call it
channel, metadata_channel              the other end, and what goes with its calls
steps                                  many steps over one stream
http_server                            HTTP for what is small: metrics, discovery, spans
read_watch                             cuts an HTTP connection that its client has stopped reading
services, service_link                 finding a service, and staying connected to it
"""
