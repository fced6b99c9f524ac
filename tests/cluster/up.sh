#!/bin/bash
# Starts a Kubernetes of one node on this machine: STATE=<folder for all it writes> BIN=<folder of the six programs> ./up.sh
#
# It listens at an address of the loopback interface that pods reach and the outside does not. The zeros for out-of-memory scores and connection
# tracking are for machines, such as containers, whose root may not set these.
set -euo pipefail
: "${STATE:?the folder for all it writes}" "${BIN:?the folder of the six programs}"
ip=10.200.0.1 node=node1 pause=localhost/podman-pause:4.3.1-0 etcd=http://127.0.0.1:2379 services=10.96.0.0/16 pods=10.244.0.0/16
mkdir -p "$STATE"/{etcd,pki,cni,containerd,manifests,names,kubelet}
cd "$STATE"
[ -f sysctl.before ] || sysctl vm.overcommit_memory kernel.panic kernel.panic_on_oops net.ipv4.ip_forward net.ipv4.conf.all.route_localnet > sysctl.before
ip addr show dev lo | grep -q "$ip/32" || ip addr add "$ip/32" dev lo

start() { # start NAME COMMAND...: in a session of its own, its output in NAME.log, its number in NAME.pid
    local name=$1
    shift
    setsid "$@" > "$name.log" 2>&1 &
    echo $! > "$name.pid"
}

cat > containerd.toml <<T
version = 2
root = "$STATE/containerd/root"
state = "$STATE/containerd/state"
[grpc]
address = "$STATE/containerd.sock"
[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = "$pause"
restrict_oom_score_adj = true
[plugins."io.containerd.grpc.v1.cri".cni]
bin_dir = "/usr/lib/cni"
conf_dir = "$STATE/cni"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"
T
cat > cni/10-bridge.conflist <<T
{"cniVersion": "0.3.1", "name": "k8s", "plugins": [
 {"type": "bridge", "bridge": "cni-k8s0", "isGateway": true, "ipMasq": true, "hairpinMode": true,
  "ipam": {"type": "host-local", "ranges": [[{"subnet": "10.244.0.0/24"}]], "routes": [{"dst": "0.0.0.0/0"}]}},
 {"type": "portmap", "capabilities": {"portMappings": true}}]}
T
start containerd containerd -c containerd.toml
start etcd etcd --data-dir etcd --listen-client-urls $etcd --advertise-client-urls $etcd --listen-peer-urls http://127.0.0.1:2380

[ -f pki/sa.key ] || { openssl genrsa -out pki/sa.key 2048 && openssl rsa -in pki/sa.key -pubout -out pki/sa.pub; }
[ -f pki/token ] || openssl rand -hex 24 > pki/token
token=$(cat pki/token)
echo "$token,admin,admin,system:masters" > pki/tokens.csv
start apiserver "$BIN/kube-apiserver" --etcd-servers=$etcd --service-cluster-ip-range=$services --cert-dir=pki --bind-address=$ip \
    --advertise-address=$ip --secure-port=6443 --insecure-port=0 --service-account-issuer=https://kubernetes.default.svc \
    --service-account-key-file=pki/sa.pub --service-account-signing-key-file=pki/sa.key --token-auth-file=pki/tokens.csv \
    --authorization-mode=Node,RBAC --allow-privileged=true --enable-admission-plugins=NodeRestriction --kubelet-preferred-address-types=InternalIP
until curl -sk "https://$ip:6443/readyz" -H "Authorization: Bearer $token" | grep -q '^ok'; do sleep 1; done

export KUBECONFIG=$STATE/admin.conf
kubectl() { "$BIN/kubectl" "$@"; }
kubectl config set-cluster one --server=https://$ip:6443 --certificate-authority="$STATE/pki/apiserver.crt"
kubectl config set-credentials admin --token="$token"
kubectl config set-context one --cluster=one --user=admin
kubectl config use-context one
start controller-manager "$BIN/kube-controller-manager" --kubeconfig=admin.conf --service-account-private-key-file=pki/sa.key --leader-elect=false \
    --use-service-account-credentials=true --root-ca-file=pki/apiserver.crt --service-cluster-ip-range=$services --allocate-node-cidrs=true \
    --cluster-cidr=$pods
start scheduler "$BIN/kube-scheduler" --kubeconfig=admin.conf --leader-elect=false

cat > kubelet.yaml <<T
apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
address: $ip
authentication: {anonymous: {enabled: true}, webhook: {enabled: false}}
authorization: {mode: AlwaysAllow}
cgroupDriver: cgroupfs
failSwapOn: false
oomScoreAdj: 0
makeIPTablesUtilChains: false
staticPodPath: $STATE/manifests
evictionHard: {memory.available: 200Mi, nodefs.available: "3%", imagefs.available: "3%"}
clusterDNS: ["$ip"]
clusterDomain: cluster.local
T
start kubelet "$BIN/kubelet" --config=kubelet.yaml --kubeconfig=admin.conf --container-runtime=remote --root-dir="$STATE/kubelet" \
    --container-runtime-endpoint="unix://$STATE/containerd.sock" --cert-dir="$STATE/kubelet/pki" --hostname-override=$node --node-ip=$ip
start kube-proxy "$BIN/kube-proxy" --kubeconfig=admin.conf --proxy-mode=iptables --cluster-cidr=$pods --hostname-override=$node \
    --oom-score-adj=0 --conntrack-max-per-core=0 --conntrack-tcp-timeout-established=0 --conntrack-tcp-timeout-close-wait=0 \
    --nodeport-addresses=127.0.0.0/8

# Debian has no CoreDNS: dnsmasq answers from a file that is written whenever the Services have changed
cat > names.sh <<T
dnsmasq -k --no-hosts --listen-address=$ip --bind-interfaces --hostsdir=$STATE/names --local=/cluster.local/ --pid-file=$STATE/dnsmasq.pid --user=root --cache-size=0 &
while sleep 2; do
  $BIN/kubectl get svc -A -o jsonpath='{range .items[*]}{.spec.clusterIP} {.metadata.name}.{.metadata.namespace}.svc.cluster.local{"\n"}{end}' |
    grep -v ^None > names.new && ! cmp -s names.new names/services && cp names.new names/services && kill -HUP \$(cat dnsmasq.pid)
done
T
start names bash names.sh

# the image of the process that holds a pod's network is the one that podman makes for its own pods
podman image exists $pause || { podman pod create --name pause-image && podman pod rm pause-image; }
buildah push -q $pause docker-archive:pause.tar:$pause
ctr -a containerd.sock -n k8s.io images import pause.tar
rm -f pause.tar
until kubectl get node $node 2> /dev/null | grep -qw Ready; do sleep 1; done
echo "export KUBECONFIG=$KUBECONFIG"
