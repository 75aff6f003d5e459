// Command kubernetes is every Kubernetes program that a kuorum machine keeps
// running, in one file: the name it is called by, or else its first argument,
// chooses which. The programs themselves are upstream's, untouched; in one file
// they share one text mapping (130 MB instead of five times 90). kubectl is not
// among them: what it sets up at its start would cost each of the others 60 ms
// and several MB.
package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	_ "time/tzdata" // time zones of CronJobs, as upstream's own mains link it

	"k8s.io/component-base/cli"
	_ "k8s.io/component-base/logs/json/register"          // --logging-format=json
	_ "k8s.io/component-base/metrics/prometheus/clientgo" // client metrics
	_ "k8s.io/component-base/metrics/prometheus/version"  // version metric
	apiserver "k8s.io/kubernetes/cmd/kube-apiserver/app"
	controllers "k8s.io/kubernetes/cmd/kube-controller-manager/app"
	proxy "k8s.io/kubernetes/cmd/kube-proxy/app"
	scheduler "k8s.io/kubernetes/cmd/kube-scheduler/app"
	kubelet "k8s.io/kubernetes/cmd/kubelet/app"
)

func main() {
	if program(filepath.Base(os.Args[0])) == nil && len(os.Args) > 1 {
		os.Args = os.Args[1:]
	}
	run := program(filepath.Base(os.Args[0]))
	if run == nil {
		fmt.Fprintln(os.Stderr, "usage: kubernetes kube-apiserver|kube-controller-manager|kube-scheduler|kubelet|kube-proxy [FLAGS]")
		os.Exit(2)
	}
	os.Exit(run())
}

// program returns what runs the program of that name and returns its exit
// code; nil when there is no such program.
func program(name string) func() int {
	switch name {
	case "kube-apiserver":
		return func() int { return cli.Run(apiserver.NewAPIServerCommand()) }
	case "kube-controller-manager":
		return func() int { return cli.Run(controllers.NewControllerManagerCommand()) }
	case "kube-scheduler":
		return func() int { return cli.Run(scheduler.NewSchedulerCommand()) }
	case "kube-proxy":
		return func() int { return cli.Run(proxy.NewProxyCommand()) }
	case "kubelet":
		return func() int { return cli.Run(kubelet.NewKubeletCommand(context.Background())) }
	}
	return nil
}
