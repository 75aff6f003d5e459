package main

import "strings"

// recipe says how one part of the bundle is built. It holds no version: those
// are in the go.mod of its directory below upstream, and nowhere else.
//
// In stamps, {version} is the module's version ("v1.36.3"), {major} and
// {minor} its first two numbers, and {time} when that version was made.
type recipe struct {
	dir     string // below upstream; holds go.mod
	module  string // whose version is the part's
	pkg     string // main package
	file    string // bin/NAME
	links   []string
	tags    []string
	ldflags []string // beside -s -w and the stamps
	stamps  []string // variable=value, for the linker's -X
	cgo     bool
}

// recipes are built in this order: what takes longest comes first, so that a
// mistake in it shows early.
func recipes() []recipe {
	// As hack/lib/version.sh stamps them. The commit is unknown: a module
	// carries none, and empty is what upstream prints as "unknown".
	kubernetes := each([]string{"k8s.io/component-base/version.", "k8s.io/client-go/pkg/version."},
		"gitVersion={version}", "gitMajor={major}", "gitMinor={minor}", "gitTreeState=clean", "gitCommit=", "buildDate={time}")
	list := []recipe{{
		dir: "kubernetes", module: "k8s.io/kubernetes", pkg: ".", file: "bin/kubernetes", stamps: kubernetes,
		links: []string{"kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubelet", "kube-proxy"},
	}, {
		dir: "kubernetes", module: "k8s.io/kubernetes", pkg: "./kubectl", file: "bin/kubectl", stamps: kubernetes,
	}}
	for _, name := range []string{"etcd", "etcdctl", "etcdutl"} {
		pkg := "go.etcd.io/etcd/" + name + "/v3"
		if name == "etcd" {
			pkg = "go.etcd.io/etcd/server/v3"
		}
		list = append(list, recipe{
			dir: "etcd", module: pkg, pkg: pkg, file: "bin/" + name,
			stamps: []string{"go.etcd.io/etcd/api/v3/version.GitSHA={version}"},
		})
	}
	for _, name := range []string{"containerd", "containerd-shim-runc-v2", "ctr"} {
		const module = "github.com/containerd/containerd/v2"
		r := recipe{
			dir: "containerd", module: module, pkg: module + "/cmd/" + name, file: "bin/" + name,
			tags:   []string{"netgo", "osusergo", "static_build", "urfave_cli_no_docs"},
			stamps: []string{module + "/version.Version={version}"},
		}
		if name == "containerd-shim-runc-v2" {
			r.tags = append(r.tags, "no_grpc") // one shim a pod: upstream keeps it small, too
		}
		list = append(list, r)
	}
	list = append(list, recipe{
		dir: "runc", module: "github.com/opencontainers/runc", pkg: "github.com/opencontainers/runc", file: "bin/runc",
		tags:    []string{"netgo", "osusergo", "seccomp", "urfave_cli_no_docs"},
		ldflags: []string{"-extldflags", "-static"},
		cgo:     true, // libseccomp, and the C code that enters namespaces
	})
	for _, name := range []string{"main/ptp", "main/loopback", "ipam/host-local", "meta/portmap", "meta/bandwidth"} {
		const module = "github.com/containernetworking/plugins"
		list = append(list, recipe{
			dir: "cni", module: module, pkg: module + "/plugins/" + name, file: "bin/" + name[strings.Index(name, "/")+1:],
			stamps: []string{module + "/pkg/utils/buildversion.BuildVersion={version}"},
		})
	}
	return append(list, recipe{
		dir: "coredns", module: "github.com/coredns/coredns", pkg: ".", file: "bin/coredns",
		stamps: []string{"github.com/coredns/coredns/coremain.GitCommit={version}"},
	}, recipe{
		dir: "flannel", module: "github.com/flannel-io/flannel", pkg: ".", file: "bin/flanneld",
		stamps: []string{"github.com/flannel-io/flannel/pkg/version.Version={version}"},
	})
}

// each puts every prefix before every stamp.
func each(prefixes []string, stamps ...string) []string {
	var all []string
	for _, prefix := range prefixes {
		for _, stamp := range stamps {
			all = append(all, prefix+stamp)
		}
	}
	return all
}
