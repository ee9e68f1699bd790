#!/bin/bash
# A grid of virtual machines on this machine, made of the image that `make image` builds. Root is not needed.
#
#   images/run.sh [-n 3] [--memory 1G] [--cpus 1]     boots the machines, which form one grid; Ctrl-C ends them
#   images/run.sh exec node1 -- COMMAND...              runs a command on one, as root; a shell without one
#   images/run.sh down                                  ends them all, from another terminal
#
#   --image FOLDER      where the image is (target/image)
#   --folder FOLDER     where the machines' files are while they run (target/image/machines): one for each grid
#
#   node1, node2, ... ═══ streams ═══ a QEMU without a machine, whose hub is their network, 10.77.0.0/24
#     └── port of this machine's loopback, for ssh with a key of this grid; nothing else goes in or out
#
# What a machine writes goes to a file over the image, which goes with the machine.
set -euo pipefail

here=$(pwd)
cd "$(dirname "$0")/.."
target=${CARGO_TARGET_DIR:-target}
image=$target/image
folder=$target/image/machines
count=3 memory=1G cpus=1
# Without hardware virtualisation, on a busy machine.
patience=300

fail() {
    echo "images/run.sh: $*" >&2
    exit 1
}

number() {
    [[ $2 =~ ^[1-9][0-9]{0,5}$ ]] && (($2 <= $3)) || fail "$1 takes a number from 1 to $3, not '$2'"
}

# A path as seen from where the user is.
path() {
    if [[ $1 == /* ]]; then echo "$1"; else echo "$here/$1"; fi
}

command=up
case ${1:-} in
up | exec | down)
    command=$1
    shift
    ;;
esac
node='' words=()
while (($#)); do
    case $1 in
    -n | --memory | --cpus | --image | --folder) (($# > 1)) || fail "$1 takes a value" ;;
    esac
    case $1 in
    -n) number -n "$2" 64 && count=$2 && shift 2 ;;
    --cpus) number --cpus "$2" 64 && cpus=$2 && shift 2 ;;
    --memory)
        [[ $2 =~ ^([1-9][0-9]{0,6})([MG])$ ]] || fail "--memory takes a number and M or G, as 512M, not '$2'"
        [[ $2 == *G ]] || ((BASH_REMATCH[1] >= 384)) || fail "--memory must be 384M at least: a node keeps 256M for itself"
        memory=$2
        shift 2
        ;;
    --image) image=$(path "$2") && shift 2 ;;
    --folder) folder=$(path "$2") && shift 2 ;;
    -h | --help)
        sed -n '2,/^set/s/^# \{0,1\}//p' "$0"
        exit
        ;;
    --)
        [[ $command == exec ]] || fail "only exec takes a command"
        shift
        words=("$@")
        break
        ;;
    *)
        [[ $command == exec && -z $node && $1 != -* ]] || fail "'$1' is not understood: images/run.sh --help tells what is"
        node=$1
        shift
        ;;
    esac
done

# Whether a grid runs in the folder: whoever started it holds its lock.
runs() {
    [[ -e $folder/lock ]] && ! flock -n "$folder/lock" true
}

# on NODE [COMMAND...]: runs it there by ssh, all by one connection. The folder is the current one: paths of sockets are short.
on() {
    local node=$1
    shift
    ssh -F none -i key -o IdentitiesOnly=yes -o UserKnownHostsFile=known_hosts -o StrictHostKeyChecking=yes \
        -o HostKeyAlias=grid -o KexAlgorithms=curve25519-sha256 -o LogLevel=ERROR -o ControlMaster=auto \
        -o ControlPath="$node.ssh" -o ControlPersist=yes -o ConnectTimeout="$patience" -p "$(<"$node.port")" \
        "${options[@]}" root@127.0.0.1 "$@"
}
options=()

run_exec() {
    [[ -n $node ]] || fail "exec takes a node, as images/run.sh exec node1 -- gridctl nodes"
    runs || fail "no grid runs in $folder: images/run.sh starts one"
    [[ -e $folder/$node.port ]] || fail "there is no '$node': the nodes are node1 to node$(<"$folder/count")"
    cd "$folder"
    # One word for the shell over there, with each word as it is here.
    local line='' word
    for word in "${words[@]}"; do line+=" ${word@Q}"; done
    [[ ! -t 0 || ! -t 1 ]] || options=(-t)
    if [[ -n $line ]]; then on "$node" "$line"; else on "$node"; fi
}

run_down() {
    if ! runs; then
        [[ ! -e $folder/lock ]] || rm -rf "$folder"
        fail "no grid runs in $folder"
    fi
    local pid
    pid=$(<"$folder/pid")
    kill -TERM "$pid"
    # It takes the folder with it.
    until ! kill -0 "$pid" 2>/dev/null && [[ ! -e $folder ]]; do sleep 0.1; done
}

# Whether KVM boots this kernel, by trying: that /dev/kvm is there says little. Without a disk it ends in a panic.
kvm_works() {
    [[ -w /dev/kvm ]] || { why="/dev/kvm cannot be opened" && return 1; }
    # In a shell of its own, which keeps it for itself if QEMU aborts.
    (timeout 20 qemu-system-x86_64 -accel kvm -cpu host -m 256M -display none -serial "file:trial" -monitor none -net none \
        -no-reboot -kernel "$image/vmlinuz" -append "console=ttyS0 panic=-1"; true) >trial.said 2>&1
    grep -q 'Unable to mount root' trial || { why="KVM does not boot the kernel" && return 1; }
}

# start NUMBER: starts a machine.
start() {
    local name=node$1 port
    until port=$((20000 + RANDOM % 30000)) && ! (: <>"/dev/tcp/127.0.0.1/$port") 2>/dev/null; do :; done
    echo "$port" >"$name.port"
    : >"$name.console"
    setpriv --pdeathsig TERM qemu-system-x86_64 -name "$name" "${accel[@]}" -M pc -m "$memory" -smp "$cpus" \
        -display none -vga none -monitor none -serial "file:$name.console" -no-reboot \
        -kernel "$image/vmlinuz" -initrd "$image/initrd" \
        -append "console=ttyS0 quiet panic=-1 net.ifnames=0 systemd.show_status=false lsm=landlock,yama systemd.hostname=$name gridmachine=$1" \
        -drive "if=virtio,format=qcow2,cache=unsafe,file=$name.qcow2" \
        -netdev "stream,id=grid,server=off,addr.type=unix,addr.path=net$1" \
        -device "virtio-net-pci,netdev=grid,romfile=,mac=52:54:00:77:00:$(printf %02x "$1")" \
        -netdev "user,id=ssh,restrict=on,hostfwd=tcp:127.0.0.1:$port-10.0.2.15:22" \
        -device "virtio-net-pci,netdev=ssh,romfile=,mac=52:54:00:77:01:$(printf %02x "$1")" \
        -fw_cfg name=opt/org.gridos/host_key,file=host_key -fw_cfg name=opt/org.gridos/authorized_keys,file=key.pub \
        </dev/null >"$name.said" 2>&1 9>&- &
    pids[$1]=$!
}

# Ends what was started, and leaves nothing.
clean_up() {
    trap '' INT TERM HUP
    local name
    for name in *.ssh; do
        [[ ! -S $name ]] || ssh -F none -o ControlPath="$name" -O exit grid 2>/dev/null || true
    done
    ((${#pids[@]} == 0)) || kill -TERM "${pids[@]}" 2>/dev/null || true
    wait
    cd /
    rm -rf "$folder"
}

# ready NUMBER: waits until the machine says that its agent runs.
ready() {
    local name=node$1 began=$SECONDS said
    until said=$(grep -ao 'gridos: ready after [0-9]*' "$name.console"); do
        if ! kill -0 "${pids[$1]}" 2>/dev/null; then
            # Somebody else took the port meanwhile.
            grep -q 'host forwarding' "$name.said" || fail "$name ended: $(tail -n 1 "$name.said" "$name.console" | tr -d '\r')"
            start "$1"
        fi
        ((SECONDS - began < patience)) ||
            fail "$name did not start within $patience s: $(tail -n 1 "$name.console" | tr -d '\r')"
        sleep 0.1
    done
    echo "$name  10.77.0.$1  up after ${said##* } s"
}

run_up() {
    [[ $(uname -m) == x86_64 ]] || fail "the image is for x86_64, and this machine is not"
    ! runs || fail "a grid runs in $folder already: images/run.sh down ends it, or choose another --folder"
    [[ -e $image/made-of ]] || fail "there is no image in $image: make image builds it"
    local tool i
    for tool in qemu-system-x86_64 qemu-img ssh setpriv flock; do
        command -v "$tool" >/dev/null || fail "there is no $tool: setup/install image installs it"
    done
    image=$(cd "$image" && pwd)
    [[ ! -e $folder || -e $folder/lock ]] || fail "$folder is there already and not a grid's: choose another --folder"
    rm -rf "$folder"
    mkdir -p "$(dirname "$folder")"
    mkdir -m 700 "$folder"
    cd "$folder"
    folder=$(pwd)
    exec 9>lock
    flock -n 9
    umask 077
    echo $$ >pid
    echo "$count" >count
    pids=()
    trap clean_up EXIT
    trap 'exit 130' INT
    trap 'exit 143' TERM HUP

    local why cores=cores accel=(-accel kvm -cpu host)
    [ "$cpus" != 1 ] || cores=core
    if kvm_works; then
        echo "$count machines by KVM, with $cpus $cores and $memory each"
    else
        # QEMU 7.2 sets wrong flags after cmpxchg16b, which the allocator of Linux 6.12 uses if it can.
        accel=(-accel "tcg,thread=multi,tb-size=256" -cpu "max,-cx16")
        echo "$count machines by emulation (TCG), as $why; with $cpus $cores and $memory each"
    fi
    ssh-keygen -q -t ed25519 -N '' -C grid -f key
    ssh-keygen -q -t ed25519 -N '' -C grid -f host_key
    echo "grid $(<host_key.pub)" >known_hosts

    local hub=()
    for ((i = 1; i <= count; i++)); do
        hub+=(-netdev "stream,id=line$i,server=on,addr.type=unix,addr.path=net$i" -netdev "hubport,id=port$i,hubid=0,netdev=line$i")
        qemu-img create -q -f qcow2 -F qcow2 -b "$image/gridos.qcow2" "node$i.qcow2"
    done
    setpriv --pdeathsig TERM qemu-system-x86_64 -M none -nodefaults -display none "${hub[@]}" </dev/null >hub.said 2>&1 9>&- &
    pids[0]=$!
    until [[ -S net$count ]]; do
        kill -0 "${pids[0]}" 2>/dev/null || fail "the network cannot be made: $(tail -n 1 hub.said)"
        sleep 0.05
    done
    for ((i = 1; i <= count; i++)); do start "$i"; done
    for ((i = 1; i <= count; i++)); do
        ready "$i"
        if ((i == 1)); then
            on node1 gridctl vo create machines >/dev/null || fail "node1 cannot found a VO"
        else
            # The token is in no file, and in no argument on this machine.
            # shellcheck disable=SC2016 # For the shell over there.
            on node1 gridctl token create </dev/null | on "node$i" 'gridctl join "$(cat)"' >/dev/null || fail "node$i cannot join"
        fi
    done
    # Nodes that have joined hear of each other a moment later.
    until [[ $(on node1 gridctl nodes --json </dev/null | grep -o '"state":"up"' | wc -l) == "$count" ]]; do
        ((SECONDS < count * patience)) || fail "not all nodes see each other: images/run.sh exec node1 -- gridctl nodes"
        sleep 0.5
    done
    echo "the grid is up after $SECONDS s: images/run.sh exec node1 -- gridctl nodes; Ctrl-C ends it"
    # A machine may end and the grid go on, as other grids do.
    local name
    while ((${#pids[@]} > 1)); do
        wait -n "${pids[@]}" || true
        for i in "${!pids[@]}"; do
            ! kill -0 "${pids[i]}" 2>/dev/null || continue
            if ((i)); then name=node$i; else name=hub; fi
            echo "images/run.sh: $name ended: $(tail -n 1 "$name.said")" >&2
            unset "pids[i]"
            ((i)) || exit 1
        done
    done
    fail "all machines have ended"
}

"run_$command"
