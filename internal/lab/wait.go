package lab

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"kuorum/internal/cluster"
	"kuorum/internal/component"
	"kuorum/internal/kubeapi"
)

const (
	pollAPI = 100 * time.Millisecond // how often a waiting `up` looks at the API
	askAPI  = 5 * time.Second        // the longest that one look may take
)

func (u *Up) waitAPI(ctx context.Context) error {
	api, err := kubeapi.New(u.lab.Kubeconfig(), askAPI)
	if err != nil {
		return err
	}
	return u.lab.late(ctx, "the API of lab "+u.lab.Name+" does not answer", poll(ctx, pollAPI, func() error {
		return api.Get(ctx, "/readyz", nil)
	}))
}

// nodeList is the part of a NodeList (v1) that says whether nodes are Ready.
type nodeList struct {
	Items []struct {
		Metadata struct {
			Name string `json:"name"`
		} `json:"metadata"`
		Status struct {
			Conditions []struct {
				Type    string `json:"type"`
				Status  string `json:"status"`
				Message string `json:"message"`
			} `json:"conditions"`
		} `json:"status"`
	} `json:"items"`
}

func (u *Up) waitNodes(ctx context.Context) error {
	api, err := kubeapi.New(u.lab.Kubeconfig(), askAPI)
	if err != nil {
		return err
	}
	return u.lab.late(ctx, "not every node is Ready", poll(ctx, pollAPI, func() error {
		var list nodeList
		if err := api.Get(ctx, "/api/v1/nodes", &list); err != nil {
			return err
		}
		return missing(u.lab.Nodes(), list)
	}))
}

// missing is nil when every node of spec that is one of Kubernetes is Ready, else the names and reasons
// of those that are not.
func missing(spec *cluster.Spec, nodes nodeList) error {
	reasons := map[string]string{}
	for _, n := range nodes.Items {
		for _, c := range n.Status.Conditions {
			if c.Type == "Ready" && c.Status == "True" {
				reasons[n.Metadata.Name] = "ready"
			} else if c.Type == "Ready" {
				reasons[n.Metadata.Name] = c.Message
			}
		}
	}
	var errs []error
	for _, n := range spec.KubernetesNodes() {
		switch reason, ok := reasons[n.Name]; {
		case !ok:
			errs = append(errs, fmt.Errorf("%s has not registered", n.Name))
		case reason != "ready":
			errs = append(errs, fmt.Errorf("%s: %s", n.Name, reason))
		}
	}
	return errors.Join(errs...)
}

// The first pod proves that one can run. It is in kube-system, where no quota
// or security level of a user's can be in its way, and is removed again.
const (
	firstPodName = "kuorum-first-pod"
	podsPath     = "/api/v1/namespaces/kube-system/pods"
	firstPod     = `{"apiVersion":"v1","kind":"Pod","metadata":{"name":"` + firstPodName + `","namespace":"kube-system"},"spec":{
		"automountServiceAccountToken":false,"terminationGracePeriodSeconds":0,"restartPolicy":"Never",
		"containers":[{"name":"pause","image":"` + component.PauseImage + `","imagePullPolicy":"Never"}]}}`
)

// podPhase is the part of a Pod (v1) that says whether it runs.
type podPhase struct {
	Status struct {
		Phase string `json:"phase"`
	} `json:"status"`
}

func (u *Up) waitPod(ctx context.Context) error {
	api, err := kubeapi.New(u.lab.Kubeconfig(), askAPI)
	if err != nil {
		return err
	}
	err = poll(ctx, pollAPI, func() error {
		return runFirstPod(ctx, api)
	})
	cleanup, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
	defer cancel()
	if err != nil {
		_ = removeFirstPod(cleanup, api) // what is reported is why it does not run
		return u.lab.late(ctx, "a first pod does not run", err)
	}
	return removeFirstPod(cleanup, api)
}

// runFirstPod is nil when the first pod, which it makes if there is none, runs.
func runFirstPod(ctx context.Context, api *kubeapi.Client) error {
	var pod podPhase
	err := api.Get(ctx, podsPath+"/"+firstPodName, &pod)
	if errors.Is(err, kubeapi.ErrNotFound) {
		err = api.Create(ctx, podsPath, firstPod, &pod)
	}
	if err != nil {
		return err
	}
	if pod.Status.Phase != "Running" {
		return fmt.Errorf("the pod %s is %s", firstPodName, pod.Status.Phase)
	}
	return nil
}

func removeFirstPod(ctx context.Context, api *kubeapi.Client) error {
	err := api.Delete(ctx, podsPath+"/"+firstPodName+"?gracePeriodSeconds=0")
	if errors.Is(err, kubeapi.ErrNotFound) {
		return nil
	}
	return err
}

// late turns the end of a wait into a problem that names the cause: the
// deadline, or ^C, and what was missing then.
func (l *Lab) late(ctx context.Context, what string, err error) error {
	if err == nil {
		return nil
	}
	if errors.Is(context.Cause(ctx), context.DeadlineExceeded) {
		return &cluster.Problem{
			What: what, Err: err, Exit: cluster.ExitTimeout,
			Do: fmt.Sprintf("kuorum list %s     (shows what each machine waits for)\n      kuorum logs NODE COMPONENT", l.Name),
		}
	}
	return err
}

// WaitReady blocks until every component of the machine is ready. It does not
// wait for a node whose machine has another address: that starts nothing.
func (l *Lab) WaitReady(ctx context.Context, name string) error {
	var astray *cluster.NodeStatus
	err := poll(ctx, 250*time.Millisecond, func() error {
		status, err := l.Status(ctx)
		if err != nil {
			return err
		}
		m, err := status.Machine(name)
		if err != nil {
			return err
		}
		if m.Agent != nil && m.Agent.Lost != "" {
			astray = m.Agent
			return nil
		}
		return unready(m)
	})
	if astray != nil && err == nil {
		return &cluster.Problem{
			What: fmt.Sprintf("machine %s is on, and its node starts nothing", name),
			Why:  fmt.Sprintf("the node's address %s is not on it: it has %s", astray.Lost, strings.Join(astray.Addresses, ", ")),
			Do:   "kuorum node address " + name + "=ADDRESS, with all nodes that have moved", Exit: cluster.ExitRefused,
		}
	}
	return l.late(ctx, "machine "+name+" is not ready", err)
}

func unready(m MachineStatus) error {
	if m.Power != PowerOn {
		return fmt.Errorf("%s is off", m.Name)
	}
	if m.Agent == nil {
		return fmt.Errorf("the agent of %s does not answer: %s", m.Name, m.Error)
	}
	var errs []error
	for _, c := range m.Agent.Components {
		if c.Phase != "ready" {
			errs = append(errs, fmt.Errorf("%s is %s %s", c.Name, c.Phase, c.Message))
		}
	}
	return errors.Join(errs...)
}
