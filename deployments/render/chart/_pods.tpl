{{- /* Parts of pods. */ -}}

{{- define "pointsman.restricted" -}}
allowPrivilegeEscalation: false
capabilities:
  drop: ["ALL"]
readOnlyRootFilesystem: true
runAsNonRoot: true
{{- end }}

{{- /* A list: thousandths of a core, bytes, GPUs. */ -}}
{{- define "pointsman.resources" -}}
{{- range $kind := list "limits" "requests" }}
{{ $kind }}:
  cpu: "{{ index $ 0 }}m"
  memory: "{{ index $ 1 }}"
  {{- if gt (int64 (index $ 2)) 0 }}
  nvidia.com/gpu: "{{ index $ 2 }}"
  {{- end }}
{{- end }}
{{- end }}

{{- /* A list: the port, the path, how many failures in a row count, the seconds between two looks. */ -}}
{{- define "pointsman.probe" -}}
failureThreshold: {{ int64 (index . 2) }}
httpGet:
  path: {{ index . 1 }}
  port: {{ int64 (index . 0) }}
periodSeconds: {{ int64 (index . 3) }}
timeoutSeconds: 3
{{- end }}

{{- /* A list: the variable, the secret, the key in it. */ -}}
{{- define "pointsman.fromSecret" -}}
- name: {{ index . 0 | quote }}
  valueFrom:
    secretKeyRef:
      key: {{ index . 2 | quote }}
      name: {{ index . 1 | quote }}
{{- end }}

{{- /* What every container has; a dictionary: root, name, image, variables, writes (the cache), online (reaches for models). */ -}}
{{- define "pointsman.container" -}}
{{- $pods := .root.Values.pods -}}
{{- $where := .root.Values.config.deployment -}}
name: {{ .name }}
image: {{ .image | quote }}
imagePullPolicy: IfNotPresent
securityContext:
  {{- include "pointsman.restricted" . | nindent 2 }}
env:
  {{- range $name, $value := $pods.environment }}
  {{- if not (and $.online (eq $name "HF_HUB_OFFLINE")) }}
  - name: {{ $name | quote }}
    value: {{ $value | quote }}
  {{- end }}
  {{- end }}
  {{- include "pointsman.fromSecret" (list "RAY_AUTH_TOKEN" $where.ray_token_secret "auth_token") | nindent 2 }}
  {{- range .variables }}
  {{- include "pointsman.fromSecret" (list . $where.environment_secret .) | nindent 2 }}
  {{- end }}
  {{- if .online }}
  - name: HF_TOKEN
    valueFrom:
      secretKeyRef:
        key: HF_TOKEN
        name: {{ $where.environment_secret | quote }}
        optional: true
  {{- end }}
volumeMounts:
  - {mountPath: /tmp, name: tmp}
  - {mountPath: /dev/shm, name: shm}
  - {mountPath: {{ $pods.home }}, name: home}
  - {mountPath: {{ $pods.state }}, name: state}
  - mountPath: {{ $pods.cache }}
    name: cache
    {{- if not .writes }}
    readOnly: true
    {{- end }}
  - {mountPath: {{ $pods.configFolder }}, name: config, readOnly: true}
  {{- if include "pointsman.hasPools" .root }}
  - {mountPath: {{ $pods.state }}/pools, name: pools}
  - {mountPath: {{ $pods.state }}/pools/secret, name: pools-secret, readOnly: true, subPath: secret}
  {{- end }}
{{- end }}

{{- /* What every pod has; a dictionary: root, grace. */ -}}
{{- define "pointsman.pod" -}}
{{- $pods := .root.Values.pods -}}
{{- $config := .root.Values.config -}}
automountServiceAccountToken: false
enableServiceLinks: false
securityContext:
  fsGroup: {{ int64 $pods.user }}
  fsGroupChangePolicy: OnRootMismatch
  runAsGroup: {{ int64 $pods.user }}
  runAsNonRoot: true
  runAsUser: {{ int64 $pods.user }}
  seccompProfile:
    type: RuntimeDefault
terminationGracePeriodSeconds: {{ int64 .grace }}
volumes:
  - {name: tmp, emptyDir: {}}
  - name: shm
    emptyDir:
      medium: Memory
      sizeLimit: "{{ add (int64 $pods.objectStoreBytes) (int64 $pods.shmBytes) }}"
  - {name: home, emptyDir: {}}
  - {name: state, emptyDir: {}}
  - name: cache
    persistentVolumeClaim:
      claimName: {{ $config.name }}-models
  - name: config
    configMap:
      name: {{ $config.name }}-config
  {{- if include "pointsman.hasPools" .root }}
  - {name: pools, emptyDir: {}}
  - name: pools-secret
    secret:
      secretName: {{ $config.deployment.pools_secret | quote }}
      defaultMode: 0440
  {{- end }}
{{- end }}

{{- /* The pod of a worker; a dictionary: root, group. */ -}}
{{- define "pointsman.worker" -}}
{{- $pods := .root.Values.pods -}}
{{- $config := .root.Values.config -}}
{{- $group := .group -}}
{{- $isIngress := eq $group.name "ingress" -}}
{{- $alive := list $pods.agentPort "/api/local_raylet_healthz" $pods.probeFailures $pods.probePeriodSeconds -}}
metadata:
  annotations:
    pointsman.dev/replicas: "{{ int64 $group.min }}-{{ int64 $group.max }}"
  labels:
    {{- include "pointsman.labels" .root | nindent 4 }}
    pointsman.dev/group: {{ $group.name }}
spec:
  {{- include "pointsman.pod" (dict "root" .root "grace" $group.grace) | nindent 2 }}
  {{- if $isIngress }}
    - name: keys
      secret:
        secretName: {{ $config.deployment.keys_secret | quote }}
        defaultMode: 0440
  {{- end }}
  {{- if gt (int64 $group.gpus) 0 }}
  tolerations:
    - {effect: NoSchedule, key: nvidia.com/gpu, operator: Exists}
  {{- end }}
  containers:
    - {{- include "pointsman.container" (dict "root" .root "name" "ray-worker" "image" $group.image "variables" $group.variables) | nindent 6 }}
      {{- if $isIngress }}
        - {mountPath: {{ $pods.keys }}, name: keys, readOnly: true}
      ports:
        - {containerPort: {{ int64 $config.ingress.port }}, name: http, protocol: TCP}
      startupProbe:
        {{- $failures := divf (add (int64 $group.start) (int64 $pods.startSlackSeconds)) 5 | ceil | int64 }}
        {{- include "pointsman.probe" (list $config.ingress.port "/readyz" $failures $pods.probePeriodSeconds) | nindent 8 }}
      readinessProbe:
        {{- include "pointsman.probe" (list $config.ingress.port "/readyz?exclude=models" $pods.probeFailures $pods.probePeriodSeconds) | nindent 8 }}
      {{- else }}
      readinessProbe:
        {{- include "pointsman.probe" $alive | nindent 8 }}
      {{- end }}
      livenessProbe:
        {{- include "pointsman.probe" (list $pods.agentPort "/api/local_raylet_healthz" 120 $pods.probePeriodSeconds) | nindent 8 }}
      lifecycle:
        preStop:
          exec:
            command: [python, -m, deployments.render.drain, --seconds, "{{ sub (int64 $group.grace) (int64 $pods.graceSlackSeconds) }}"]
      resources:
        {{- $memory := add (int64 $group.memory) (int64 $pods.rayBytes) }}
        {{- include "pointsman.resources" (list (add (int64 $group.millicpus) (int64 $pods.rayMillicpus)) $memory $group.gpus) | nindent 8 }}
{{- end }}

{{- /* The pod of the head. */ -}}
{{- define "pointsman.head" -}}
{{- $pods := .Values.pods -}}
{{- $config := .Values.config -}}
{{- $image := $config.deployment.image -}}
metadata:
  annotations:
    pointsman.dev/models: "{{ range $name, $model := $config.models }}{{ with $model.source }}{{ $name }}={{ . }},{{ end }}{{ end }}"
  labels:
    {{- include "pointsman.labels" . | nindent 4 }}
    pointsman.dev/group: head
spec:
  {{- include "pointsman.pod" (dict "root" . "grace" (mul 2 (int64 $pods.graceSlackSeconds))) | nindent 2 }}
    - name: autoscaler-token
      projected:
        defaultMode: 0440
        sources:
          - serviceAccountToken: {expirationSeconds: 3607, path: token}
          - configMap:
              name: kube-root-ca.crt
              items: [{key: ca.crt, path: ca.crt}]
          - downwardAPI:
              items: [{fieldRef: {fieldPath: metadata.namespace}, path: namespace}]
  initContainers:
    - {{- include "pointsman.container" (dict "root" . "name" "models" "image" $image "writes" true "online" true) | nindent 6 }}
      command: [pointsman, models, build, --config, {{ $pods.configFolder }}/cluster.yaml]
      resources:
        {{- include "pointsman.resources" (list (int64 $pods.headMillicpus) (int64 $pods.headBytes) 0) | nindent 8 }}
  containers:
    - {{- include "pointsman.container" (dict "root" . "name" "ray-head" "image" $image) | nindent 6 }}
      ports:
        - {containerPort: {{ int64 $pods.gcsPort }}, name: gcs-server, protocol: TCP}
        - {containerPort: {{ int64 $pods.dashboardPort }}, name: dashboard, protocol: TCP}
        - {containerPort: {{ int64 $config.ingress.port }}, name: serve, protocol: TCP}
      livenessProbe:
        {{- include "pointsman.probe" (list $pods.agentPort "/api/local_raylet_healthz" 120 $pods.probePeriodSeconds) | nindent 8 }}
      readinessProbe:
        {{- include "pointsman.probe" (list $pods.dashboardPort "/api/gcs_healthz" $pods.probeFailures $pods.probePeriodSeconds) | nindent 8 }}
      resources:
        {{- include "pointsman.resources" (list (int64 $pods.headMillicpus) (int64 $pods.headBytes) 0) | nindent 8 }}
{{- end }}
