"""`ucs publish`, as cron and people run it."""

import configparser
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import pyarrow as pa
import pytest

from ucs_pipeline.cli.demo_data import DATASETS, write_data
from ucs_pipeline_tests.servers.redis_server import RedisServer
from ucs_pipeline_tests.support.home import make_home, run_ucs, ucs, write_table
