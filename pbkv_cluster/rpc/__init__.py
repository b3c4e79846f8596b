"""Between processes: generated protobuf code, conversions to the project's values, servers, channels and links.

v1                                     generated from proto/pbkv/v1
convert, access_logs                   messages to values and back
errors                                 errors to gRPC statuses and back
server, channel                        the two ends of a connection
services, service_link                 finding a service, and staying connected to it
"""
