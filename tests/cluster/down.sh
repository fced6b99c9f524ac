#!/bin/bash
# Stops what up.sh started, with the same STATE and BIN, and undoes what it changed on this machine.
set -uo pipefail
cd "${STATE:?the folder that up.sh wrote to}" || exit
: "${BIN:?the folder of the six programs}"
containers=(ctr -a "$STATE/containerd.sock" -n k8s.io)
stop() {
    for name; do [ -f "$name.pid" ] && kill "$(cat "$name.pid")"; done
    sleep 2
}
stop controller-manager scheduler
"$BIN/kubectl" --kubeconfig=admin.conf delete pods -A --all --grace-period=1 --timeout=60s # their networks are taken down properly
stop names dnsmasq kube-proxy kubelet apiserver
for task in $("${containers[@]}" tasks ls -q); do "${containers[@]}" tasks kill -s 9 "$task"; done
sleep 1
for task in $("${containers[@]}" tasks ls -q); do "${containers[@]}" tasks rm -f "$task"; done
for container in $("${containers[@]}" containers ls -q); do "${containers[@]}" containers rm "$container"; done
"$BIN/kube-proxy" --cleanup 2> /dev/null # it takes the lack of ipset, which its other mode uses, for a failure
for table in nat filter mangle; do
    for chain in KUBE-MARK-DROP KUBE-MARK-MASQ KUBE-PROXY-CANARY; do iptables -t $table -F $chain && iptables -t $table -X $chain; done
done 2> /dev/null
stop containerd etcd
awk -v state="$STATE/" 'index($2, state) == 1 {print $2}' /proc/mounts | sort -r | xargs -r -n1 umount -l
for namespace in $(ip netns ls | awk '/^cni-/ {print $1}'); do ip netns del "$namespace"; done
ip link del cni-k8s0
ip addr del 10.200.0.1/32 dev lo
find /sys/fs/cgroup{,/*}/kubepods -depth -type d -exec rmdir {} \; 2> /dev/null
sed 's/ = /=/' sysctl.before | xargs -r sysctl -q
rm -rf /var/lib/cni/networks/k8s ./*.pid sysctl.before
