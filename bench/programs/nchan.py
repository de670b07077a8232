"""nginx with its nchan module, started with a configuration of its own.

A POST is one message there, so each line is posted alone.
"""

import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

CONFIGURATION = """
load_module {module};
daemon off;
master_process off;
worker_rlimit_nofile 60000;
pid {folder}/pid;
error_log {folder}/error.log;
events {{ worker_connections 30000; }}
http {{
  access_log off;
  client_body_temp_path {folder};
  proxy_temp_path {folder};
  fastcgi_temp_path {folder};
  uwsgi_temp_path {folder};
  scgi_temp_path {folder};
  keepalive_requests 1000000;
  keepalive_timeout 3600;
  nchan_shared_memory_size 256M;
  server {{
    listen 127.0.0.1:{port} backlog=1024;
    location = /ws {{
      nchan_subscriber websocket;
      nchan_channel_id all;
      nchan_subscriber_first_message newest;
    }}
    location = /publish {{
      nchan_publisher;
      nchan_channel_id all;
      nchan_message_buffer_length 10;
    }}
  }}
}}
"""

nginx, module = sys.argv[1:]
folder = Path("build/bench/nchan").absolute()
folder.mkdir(parents=True, exist_ok=True)
with socket.create_server(("127.0.0.1", 0)) as free:
    port = free.getsockname()[1]
path = folder / "nginx.conf"
path.write_text(CONFIGURATION.format(module=module, folder=folder, port=port), "utf-8")
said = subprocess.run([nginx, "-v"], capture_output=True, text=True, check=True).stderr
version = "nchan on nginx " + re.findall(r"nginx/([\d.]+)", said)[0]
print(json.dumps({"port": port, "each": True, "version": version}), flush=True)
os.execv(nginx, [nginx, "-e", f"{folder}/error.log", "-c", str(path)])
