#!/usr/bin/env bash
# A real Slurm cluster on one Linux machine, for tests; needs root and Debian's
#   slurmctld slurmd slurm-client munge iproute2 util-linux procps
#
#   cluster.sh run FOLDER HOSTS             start it: the controller (host ctl) and node1..nodeN; it lasts as long as
#                                           this process, and writes FOLDER/ready once all nodes are idle; the default
#                                           partition has the first two nodes, and jobs of the partition
#                                           `urgent` preempt its jobs; the partition `spare` has all nodes
#   cluster.sh on FOLDER HOST COMMAND...    run a command on a host, in the current folder
#   cluster.sh power-off FOLDER HOST        end every process of a host at once, and unplug it
#   cluster.sh power-on FOLDER HOST         start it again
#   cluster.sh unplug FOLDER HOST           pull the network cable of a host that keeps running
#   cluster.sh plug-in FOLDER HOST          put it back
#
# A host is a set of namespaces: an address, a name, a process tree and /dev/shm of its own. The disk is shared, as on a
# cluster. The hosts live inside the controller's namespaces: when its process 1 dies, the kernel ends and removes all.
set -euo pipefail
verb=${1:?usage: cluster.sh run FOLDER HOSTS | on FOLDER HOST COMMAND... | power-off, power-on, unplug or plug-in FOLDER HOST}
folder=$(realpath "${2:?which folder?}")
shift 2
export SLURM_CONF=$folder/slurm.conf
namespaces=(--net --uts --mount --pid)

write_settings() { # HOSTS
  local host
  {
    echo "127.0.0.1 localhost"
    echo "10.77.0.1 ctl"
    for ((host = 1; host <= $1; host++)); do echo "10.77.0.$((10 + host)) node$host"; done
  } >"$folder/hosts"
  if [[ -e /sys/fs/cgroup/cgroup.controllers ]]; then
    printf 'CgroupPlugin=cgroup/v2\nIgnoreSystemd=yes\n' >"$folder/cgroup.conf"
  else
    printf 'CgroupPlugin=cgroup/v1\nCgroupAutomount=no\n' >"$folder/cgroup.conf"
  fi
  printf 'Name=gpu File=/dev/zero\nName=gpu File=/dev/full\n' >"$folder/gres.conf" # pretend GPUs: nobody opens them
  # cred_expire: a requeued job is held back for as long, 120 s by default
  # config_overrides: a node has the processors that are written here, however few the machine has
  cat >"$SLURM_CONF" <<SETTINGS
ClusterName=tests
SlurmctldHost=ctl(10.77.0.1)
AuthType=auth/munge
AuthInfo=cred_expire=5,socket=$folder/munge.socket
SlurmUser=root
SlurmdUser=root
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool/%n
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/slurmd-%n.pid
SlurmctldLogFile=$folder/slurmctld.log
SlurmdLogFile=$folder/slurmd-%n.log
MailProg=/bin/true
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerParameters=sched_interval=2
SlurmdParameters=config_overrides
ReturnToService=2
GresTypes=gpu
NodeName=node[1-$1] NodeAddr=10.77.0.[11-$((10 + $1))] CPUs=4 Gres=gpu:2 State=UNKNOWN
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
PartitionName=all Nodes=node[1-$(($1 < 2 ? $1 : 2))] Default=YES MaxTime=INFINITE GraceTime=60 State=UP
PartitionName=urgent Nodes=node[1-$(($1 < 2 ? $1 : 2))] MaxTime=INFINITE PriorityTier=10 State=UP
PartitionName=spare Nodes=ALL MaxTime=INFINITE State=UP
SETTINGS
}

enter_host() { # NAME: this process is process 1 of a new host; tell its number outside, and take its own name and views
  local pid
  read -r pid _ </proc/self/stat
  echo "$pid" >"$folder/$1.pid"
  mount -t proc proc /proc
  mount -t tmpfs -o mode=1777 tmpfs /dev/shm
  # a host knows itself as 127.0.1.1, as Debian's installer writes it
  sed "s/^10.* $1\$/127.0.1.1 $1/" "$folder/hosts" >"$folder/hosts.$1"
  mount --bind "$folder/hosts.$1" /etc/hosts
  hostname "$1"
  ip link set lo up
}

run_controller() { # HOSTS
  local host
  mkdir -p "$folder/state" "$folder/spool"
  write_settings "$1"
  enter_host ctl
  ip link add bridge type bridge
  ip addr add 10.77.0.1/24 dev bridge
  ip link set bridge up
  (umask 077 && head -c 128 /dev/urandom >"$folder/munge.key")
  munged --force --key-file="$folder/munge.key" --socket="$folder/munge.socket" --pid-file="$folder/munge.pid" \
    --log-file="$folder/munge.log" --seed-file="$folder/munge.seed" 2>>"$folder/munge.log"
  slurmctld -D &
  for ((host = 1; host <= $1; host++)); do
    boot "node$host"
  done
  until [[ $(sinfo --noheader --partition=spare --states=idle --format=%D) == "$1" ]]; do
    (($(jobs -r | wc -l) == $1 + 1)) || return 1 # a daemon has ended: its reason is above
    sleep 0.2
  done
  touch "$folder/ready"
  wait
  # its own children may all have ended, as tests start daemons and hosts again; the shell reaps these
  while [[ -e $folder/ready ]]; do sleep 1; done
}

boot() { # HOST
  rm -f "$folder/$1.pid"
  unshare "${namespaces[@]}" --fork --kill-child "$0" node "$folder" "$1" &
  plug_in "$1" "10.77.0.$((10 + ${1#node}))"
}

plug_in() { # HOST ADDRESS
  local pid
  until [[ -s $folder/$1.pid ]]; do sleep 0.05; done
  pid=$(<"$folder/$1.pid")
  # a card of its own, as real hosts have: the others remember its address, and would not find it after a power cut
  ip link add "$1" type veth peer name eth0 address "02:00:00:00:00:$(printf %02x "${2##*.}")" netns "$pid"
  ip link set "$1" master bridge up
  nsenter --target "$pid" --net ip addr add "$2/24" dev eth0
  nsenter --target "$pid" --net ip link set eth0 up
}

run_node() { # HOST
  enter_host "$1"
  until ip addr show dev eth0 2>/dev/null | grep --quiet "inet 10"; do sleep 0.05; done
  slurmd -D -N "$1" &
  wait
  # once the cluster is up, a host outlives its slurmd, which a test may start again; the shell reaps orphans
  while [[ -e $folder/ready ]]; do sleep 1; done
}

power_off() { # HOST
  (on_host ctl kill -KILL "$(<"$folder/$1.pid")")
  # with data on its way the network of a host outlives its processes, and would keep the name of the cable
  (on_host ctl ip link delete "$1") 2>/dev/null || true
}

on_host() { # HOST COMMAND...
  local host=$1
  shift
  set -- env -C "$PWD" "$@" # a new mount namespace begins in its root folder
  [[ $host == ctl ]] || set -- nsenter "${namespaces[@]}" --target "$(<"$folder/$host.pid")" -- "$@"
  exec nsenter "${namespaces[@]}" --target "$(<"$folder/ctl.pid")" -- "$@"
}

case $verb in
  run) exec setpriv --pdeathsig KILL unshare "${namespaces[@]}" --fork --kill-child "$0" controller "$folder" "$@" ;;
  controller) run_controller "$@" ;;
  node) run_node "$@" ;;
  on) on_host "$@" ;;
  power-off) power_off "$1" ;;
  power-on) (on_host ctl setsid "$(realpath "$0")" boot "$folder" "$1" >>"$folder/$1.out" 2>&1 </dev/null &) ;;
  boot) boot "$1" && wait ;;
  unplug) on_host ctl ip link set "$1" down ;;
  plug-in) on_host ctl ip link set "$1" up ;;
  *) echo "cluster.sh: $verb: expected run, on, power-off, power-on, unplug or plug-in" >&2 && exit 2 ;;
esac
