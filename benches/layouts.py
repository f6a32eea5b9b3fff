#!/usr/bin/env python3
"""What the optional layouts of rules are worth: time of one restore, and what the rules add to the first packet.

    unshare --net python3 benches/layouts.py target/release/ferrule legacy 1000 10000
    unshare --net python3 benches/layouts.py target/release/ferrule nft 1000 --endpoints 1

Everything happens in the network namespace it is started in, which must have no rules. The first packet: a
datagram from a new socket passes the rules within the system call that sends it, and ends at an interface that
drops it. Its time, less that of the same call with hardly a rule, is what the rules take; the median of many
Services. Differences of some microseconds are noise. The peak is that of the restore, if it is more than this
script's own.
"""

import argparse
import json
import os
import random
import socket
import statistics
import subprocess
import sys
import tempfile
import time

LAYOUTS = [("linear", "chains"), ("bucketed", "chains"), ("linear", "compact"), ("bucketed", "compact")]
SAMPLES = 400


def address(n):
    # As the API server gives them out: anywhere in the range.
    return f"10.{96 + (n >> 16)}.{n >> 8 & 255}.{n & 255}"


def manifests(folder, numbers, endpoints):
    items = [{"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n"}}]
    for i, number in enumerate(numbers):
        name = f"svc-{i:05}"
        items.append({
            "apiVersion": "v1", "kind": "Service", "metadata": {"namespace": "ns", "name": name},
            "spec": {"clusterIP": address(number), "ports": [{"name": "p", "protocol": "UDP", "port": 53}]},
        })
        ready = [{"addresses": [f"10.{128 + (i >> 12)}.{i >> 4 & 255}.{(i & 15) * 16 + m}"]} for m in range(endpoints)]
        items.append({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
            "metadata": {"namespace": "ns", "name": name, "labels": {"kubernetes.io/service-name": name}},
            "ports": [{"name": "p", "protocol": "UDP", "port": 5353}], "endpoints": ready,
        })
    path = os.path.join(folder, "objects.json")
    with open(path, "w") as file:
        json.dump({"apiVersion": "v1", "kind": "List", "items": items}, file)
    return path


def send(to):
    """Microseconds for one datagram from a new socket."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.bind(("192.0.2.1", 0))
        start = time.perf_counter_ns()
        sender.sendto(b"x", (to, 53))
        return (time.perf_counter_ns() - start) / 1000


def median(addresses):
    return statistics.median(send(to) for to in addresses)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("ferrule")
    parser.add_argument("variant", choices=["legacy", "nft"])
    parser.add_argument("services", type=int, nargs="+")
    parser.add_argument("--endpoints", type=int, default=10)
    parser.add_argument("--layouts", default=",".join("+".join(layout) for layout in LAYOUTS))
    args = parser.parse_args()
    run = lambda *command, **more: subprocess.run(command, check=True, **more)
    if len(run("ip", "-oneline", "link", stdout=subprocess.PIPE).stdout.splitlines()) != 1:
        sys.exit("start it in a network namespace of its own: unshare --net")
    run("ip", "link", "add", "out", "type", "veth", "peer", "name", "far")
    run("ip", "addr", "add", "192.0.2.1/24", "dev", "out")
    # What is sent has an address that the other end takes for somebody else's.
    run("ip", "link", "set", "out", "up", "arp", "off")
    run("ip", "link", "set", "far", "up", "arp", "off")
    run("ip", "route", "add", "default", "dev", "out")
    restore, save = (f"iptables-{args.variant}-{end}" for end in ("restore", "save"))
    # Connections are tracked with rules of the nat table only; and the first ones are slower.
    run(restore, input=b"*nat\n-A OUTPUT\nCOMMIT\n")
    none = [median([address(n) for n in range(SAMPLES)]) for _ in range(5)][-1]
    print(f"{args.variant}, {args.endpoints} endpoints each; with one rule that does nothing, a datagram takes {none:.1f} us")
    print(f"{'services':>8} {'dispatch':>9} {'endpoints':>9} {'chains':>7} {'rules':>7} {'restore s':>9} "
          f"{'cpu s':>6} {'peak MiB':>8} {'hit us':>7} {'miss us':>7}")
    for services in args.services:
        chosen = random.Random(1)
        numbers = chosen.sample(range(1, 1 << 18), services)
        with tempfile.TemporaryDirectory() as folder:
            objects = manifests(folder, numbers, args.endpoints)
            for layout in args.layouts.split(","):
                dispatch, endpoints = layout.split("+")
                text = run(args.ferrule, "render", "--manifests", objects, "--hostname-override", "n", "--ip-family",
                           "IPv4", f"--ferrule-service-dispatch={dispatch}", f"--ferrule-endpoint-layout={endpoints}",
                           stdout=subprocess.PIPE).stdout
                # Counters named in rules are not there.
                text = text.replace(b" -m nfacct --nfacct-name  ct_state_invalid_dropped_pkts", b"")
                text = text.replace(b" -m nfacct --nfacct-name  localhost_nps_accepted_pkts", b"")
                before = time.monotonic()
                child = subprocess.Popen([restore, "--noflush"], stdin=subprocess.PIPE)
                child.stdin.write(text)
                child.stdin.close()
                _, status, used = os.wait4(child.pid, 0)
                took = time.monotonic() - before
                if status != 0:
                    sys.exit(f"{restore}: status {status}")
                lines = text.splitlines()
                chains = sum(line.startswith(b":") for line in lines)
                rules = sum(line.startswith((b"-A", b"-I")) for line in lines)
                hit = median([address(n) for n in chosen.sample(numbers, min(SAMPLES, services))]) - none
                miss = median([f"198.51.100.{n & 255}" for n in range(SAMPLES)]) - none
                print(f"{services:>8} {dispatch:>9} {endpoints:>9} {chains:>7} {rules:>7} {took:>9.2f} "
                      f"{used.ru_utime + used.ru_stime:>6.2f} {used.ru_maxrss / 1024:>8.0f} {hit:>7.1f} {miss:>7.1f}",
                      flush=True)
                # Flushes all tables.
                run(restore, input=b"*mangle\nCOMMIT\n*filter\nCOMMIT\n*nat\nCOMMIT\n", stderr=subprocess.DEVNULL)


main()
