package doctor

import (
	"fmt"

	"kuorum/internal/cluster"
)

// What the machines of a lab take of their host. A server was measured at
// 330 MB, a worker at 150 MB; the rest is for pods. An etcd node has none: etcd
// and the agent take about 40 MB, and the rest is for its database. Disk is for logs, images
// and etcd; the bundle is counted by itself when it is unpacked.
const (
	serverMemory   = 500 << 20
	workerMemory   = 250 << 20
	etcdMemory     = 80 << 20
	balancerMemory = 60 << 20 // the agent, two of HAProxy, three of keepalived
	machineDisk    = 300 << 20
)

// What a computer of its own should have for a server beside that; kubeadm
// asks for as much.
const (
	ownMemory     = 1700 << 20
	ownProcessors = 2
	ownDisk       = 5 << 30 // images, logs and a database at its quota
)

// Where kubelet begins to evict pods (component, evictionHard).
const (
	evictionMemory = 100 << 20
	evictionDisk   = 500 << 20
)

// Need is what has to be free on a machine, in bytes, and what should be there.
type Need struct {
	For  string // "this lab"
	Who  string // "3 machines need"
	Free Amount // less is refused
	// Total is what the machine should have in all; less is a warning.
	Total      Amount
	Processors int
	MemoryDo   string
	DiskDo     string
	Inotify    int // instances that must be free
}

// Amount of what a machine has, in bytes.
type Amount struct{ Memory, Disk int64 }

// LabNeed is what a lab takes that does not run yet.
func LabNeed(spec *cluster.Spec) Need {
	machines := len(spec.Spec.Nodes)
	need := Need{
		For: "this lab", Who: fmt.Sprintf("%d machines need", machines), Free: Amount{Disk: int64(machineDisk * machines)},
		MemoryDo: "kuorum up --servers 1    (or end something else)",
		DiskDo:   "free some space there, or use another disk: KUORUM_STATE=/other/disk/kuorum",
	}
	for _, n := range spec.Spec.Nodes {
		memory, inotify := taken(n.Role)
		need.Free.Memory += memory
		need.Inotify += inotify
	}
	return need
}

// taken is what a machine of that role takes of its host.
func taken(role cluster.Role) (memory int64, inotify int) {
	switch role {
	case cluster.RoleWorker:
		return workerMemory, inotifyWorker
	case cluster.RoleEtcd:
		return etcdMemory, inotifyEtcd
	case cluster.RoleBalancer:
		return balancerMemory, inotifyBalancer
	default:
		return serverMemory, inotifyServer
	}
}

// MachineNeed is what one more machine of a lab takes.
func MachineNeed(role cluster.Role) Need {
	memory, inotify := taken(role)
	return Need{
		For: "one more machine", Who: "it needs",
		Free: Amount{Memory: memory, Disk: machineDisk}, Inotify: inotify,
		MemoryDo: "kuorum lab remove a machine, or end something else.",
		DiskDo:   "free some space there",
	}
}

// Instances of inotify that the programs of a machine hold when they are
// settled: measured, and a few more for what starts.
const (
	inotifyServer = 28 // the first; those that lead nothing hold 20
	inotifyWorker = 10
	inotifyEtcd   = 2
	// HAProxy and keepalived hold none.
	inotifyBalancer = 1
)

// ServerNeed is what a machine should have that is to become a server.
func ServerNeed() Need {
	return Need{
		For: "a server", Who: "a server needs",
		Free: Amount{Memory: serverMemory, Disk: machineDisk}, Inotify: inotifyServer,
		Total: Amount{Memory: ownMemory, Disk: ownDisk}, Processors: ownProcessors,
		MemoryDo: "End something else, or give the machine more memory.",
		DiskDo:   "Free some space there, or mount a larger disk there.",
	}
}

// RunningNeed is what must stay free where a node, or a whole lab, runs.
func RunningNeed(what string) Need {
	return Need{
		For: what, Who: "kubelet evicts pods below that, so there must be",
		Free:     Amount{Memory: evictionMemory, Disk: evictionDisk},
		MemoryDo: "End something else, or give the machine more memory.",
		DiskDo:   "Free some space there: images, logs and files of pods, snapshots.",
	}
}
